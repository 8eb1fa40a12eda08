"""How the reference files in this folder were made from originals, which are not part of this repository.

    python tests/references/make.py dsprites dsprites_original.npz
    python tests/references/make.py boxhead boxhead_original.npz
    python tests/references/make.py shapes3d 3dshapes_original.gif
    python tests/references/make.py metrics metrics_reference.npz
    python tests/references/make.py boxhead_scores boxhead_dci.npz

The first three files hold statistics of images, not images: means over blocks of 4x4 pixels, over rows and over columns, rounded to
uint8. A renderer that agrees in all three agrees in place, size, outline and colour of everything that is larger than a pixel.

`metrics.npz` holds all rows of four representations, and `metrics.json` the scores that disentanglement_lib gave for them, as they
came (`read.py` reads both).

`boxhead_scores.npz` holds DCI matrices of models that the authors of Boxhead trained, with the two scores that they published."""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def means(
    images,  # (N,C,H,W) uint8, H and W multiples of 4
):
    "Means over blocks (N,C,H/4,W/4), rows (N,C,H) and columns (N,C,W)"
    n, c, h, w = images.shape
    x = images.astype(float)
    blocks = x.reshape(n, c, h // 4, 4, w // 4, 4)
    return dict(blocks=blocks.mean((3, 5)), rows=x.mean(3), columns=x.mean(2))


def statistics(
    images,  # (N,C,H,W) uint8, H and W multiples of 4
):
    "The means, rounded to uint8"
    return {name: value.round().astype(np.uint8) for name, value in means(images).items()}


def counts(
    on,  # (N,64,64), True or 1 where a pixel is white
):
    "White pixels in the blocks (N,16,16), rows (N,64) and columns (N,64), uint8"
    x = on.astype(np.uint8)
    blocks = x.reshape(len(x), 16, 4, 16, 4)
    return dict(
        blocks=blocks.sum((2, 4), dtype=np.uint8),
        rows=x.sum(2, dtype=np.uint8),
        columns=x.sum(1, dtype=np.uint8),
    )


def dsprites(
    path,  # npz: images (160,64,64), 0 or 255: frames of the animation in the dataset's repository, shrunk to 64x64
):
    "Counts of white pixels instead of means: whole numbers, nothing is rounded"
    with np.load(path) as f:
        on = f['images'] > 0
    np.savez_compressed(HERE / 'dsprites.npz', **counts(on))


def boxhead(
    path,  # npz: images (200,64,64,3) uint8 and factors (200,10) of the authors' generator, set boxheadsimple2; names (10,)
):
    "The statistics, with factors and their names"
    with np.load(path) as f:
        images = f['images'].transpose(0, 3, 1, 2)
        factors, names = f['factors'], f['names']
    np.savez_compressed(HERE / 'boxhead.npz', factors=factors, names=names, **statistics(images))


def shapes3d_frames():
    "Factors of the 53 frames, indices in the order of the dataset, as they are seen: the animation changes one after the other"
    orientation = [(0, 6, 3, 0, 0, i) for i in range(15)]
    shape = [(0, 6, 3, 0, k, 14) for k in (1, 2, 3)]
    scale = [(0, 6, 3, k, 3, 14) for k in range(1, 8)]
    solid = [(0, 6, k % 10, 7, 3, 14) for k in range(4, 13)]
    wall = [(0, k % 10, 2, 7, 3, 14) for k in (7, 8, 9, 10, 11, 15)]
    floor = [(k, 5, 2, 7, 3, 14) for k in (1, 2, 3)]
    wall_again = [(0, k, 2, 7, 3, 14) for k in (2, 3, 4, 5)]
    floor_again = [(k, 5, 2, 7, 3, 14) for k in range(4, 10)]
    return orientation + shape + scale + solid + wall + floor + wall_again + floor_again


def shapes3d(
    path,  # gif of the dataset's repository: 53 enlarged frames, each with a thin line around it
):
    "The statistics of the frames at 64x64 without their outermost two pixels, with the factors"
    from PIL import Image

    gif = Image.open(path)
    images = []
    for k in range(gif.n_frames):
        gif.seek(k)
        small = gif.convert('RGB').resize((64, 64), Image.BOX, box=(1.5, 1.5, 224.5, 225.5))
        images.append(np.asarray(small)[2:-2, 2:-2])
    images = np.stack(images).transpose(0, 3, 1, 2)
    np.savez_compressed(HERE / 'shapes3d.npz', factors=np.array(shapes3d_frames()), **statistics(images))


REPRESENTATIONS = ('axis_0', 'mixed_1', 'rotated_2', 'split_3')
N_TRAIN = 3000  # the first rows; the others are the test part
BINS = 20  # of the reference implementation
STEPS_PER_BIN = 2**26


def whole_numbers(
    codes,  # (4500,10) float64
):
    """Codes as int32 with the lowest code and the step of each latent, (10,) each: codes = low + step * number, rounded down
    A bin of the training part is a whole number of steps, so each code stays in its bin; rounding moves it by at most 1e-9
    of the latent's range, and no two codes fall together"""
    train = codes[:N_TRAIN]
    low = train.min(0)
    step = np.ptp(train, axis=0) / (BINS * STEPS_PER_BIN)
    numbers = np.floor((codes - low) / step).astype(np.int32)
    assert all(len(np.unique(column)) == len(column) for column in numbers.T)
    return dict(codes=numbers, low=low, step=step)


def metrics(
    path,  # npz: for each of the representations codes (4500,10), factors (4500,5), and disentanglement_lib's mutual_information
    # (20 bins) and dci_importance (10,5), of the training part
):
    "All rows, the codes in 4 bytes instead of 8"
    kept = {}
    with np.load(path) as f:
        for name in REPRESENTATIONS:
            parts = whole_numbers(f[f'{name}_codes'])
            parts['factors'] = f[f'{name}_factors'].astype(np.int8)
            for matrix in ('mutual_information', 'dci_importance'):
                parts[matrix] = f[f'{name}_{matrix}']
            kept |= {f'{name}_{part}': value for part, value in parts.items()}
    np.savez_compressed(HERE / 'metrics.npz', **kept)


N_SCORES = 140  # models of the file


def boxhead_scores(
    path,  # npz: importance (709,10,12), factors in rows, and the scores child (709,) and overall (709,) of each matrix
):
    "Every model without a latent for the child factors, whose score is 0, and others in equal steps; latents in rows"
    with np.load(path) as f:
        importance, child, overall = f['importance'], f['child'], f['overall']
    without = np.flatnonzero(child == 0)
    others = np.flatnonzero(child > 0)
    steps = np.linspace(0, len(others) - 1, N_SCORES - len(without)).astype(int)
    chosen = np.r_[without, others[steps]]
    matrices = importance[chosen].transpose(0, 2, 1)
    np.savez_compressed(
        HERE / 'boxhead_scores.npz',
        importance=matrices,
        child=child[chosen],
        overall=overall[chosen],
    )


MAKERS = (dsprites, boxhead, shapes3d, metrics, boxhead_scores)

if __name__ == '__main__':
    name, path = sys.argv[1:]
    {f.__name__: f for f in MAKERS}[name](path)
