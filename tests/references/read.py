"The four representations and what disentanglement_lib gave for them: 3,000 training and 1,500 test rows in file order, 20 bins."

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
scores = json.loads((HERE / 'metrics.json').read_text(encoding='utf-8'))  # {representation: {score: value}}


@dataclass
class Representation:
    codes: np.ndarray  # training part (3000,10)
    factors: np.ndarray  # (3000,5)
    codes_test: np.ndarray  # (1500,10)
    factors_test: np.ndarray  # (1500,5)
    mutual_information: np.ndarray  # reference, of the training part (10,5)
    dci_importance: np.ndarray  # reference, of the training part (10,5)


def representation(
    name,  # 'axis_0', 'mixed_1', 'rotated_2' or 'split_3'
):
    "One of the four; see `make.metrics` for how the codes are stored"
    parts = ('codes', 'low', 'step', 'factors', 'mutual_information', 'dci_importance')
    with np.load(HERE / 'metrics.npz') as f:
        stored = {part: f[f'{name}_{part}'] for part in parts}
    codes = stored['low'] + stored['step'] * stored['codes']
    factors = stored['factors'].astype(int)
    return Representation(
        codes[:3000],
        factors[:3000],
        codes[3000:],
        factors[3000:],
        stored['mutual_information'],
        stored['dci_importance'],
    )
