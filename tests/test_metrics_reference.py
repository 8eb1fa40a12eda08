"The metrics against the values that disentanglement_lib gave for four representations: 3,000 training and 1,500 test rows in file order, 20 bins."

import numpy as np
import pytest
from references.read import representation, scores

from disent_nb.metrics import explicitness, irs, mig, modularity, mutual_information, sap

published = {
    'axis_0': dict(
        mig=0.9882754588,
        sap_discrete=0.2442666667,
        sap_continuous=0.9971722528,
        modularity=0.8036770206,
        explicitness_train=0.9999012620,
        explicitness_test=0.9998655376,
        irs=0.8576138460,
    ),
    'mixed_1': dict(
        mig=0.4838691371,
        sap_discrete=0.1656000000,
        sap_continuous=0.5730366679,
        modularity=0.9327620278,
        explicitness_train=0.9935380621,
        explicitness_test=0.9918820220,
        irs=0.6141702687,
    ),
    'rotated_2': dict(
        mig=0.0858037422,
        sap_discrete=0.0382666667,
        sap_continuous=0.1851760292,
        modularity=0.8870571492,
        explicitness_train=0.9999988040,
        explicitness_test=0.9999983300,
        irs=0.3948969230,
    ),
    'split_3': dict(
        mig=0.2288488494,
        sap_discrete=0.1102666667,
        sap_continuous=0.9570552920,
        modularity=0.9996615777,
        explicitness_train=0.9984303600,
        explicitness_test=0.9979938023,
        irs=0.7777094485,
    ),
}
score = dict(
    mig=lambda c, f, ct, ft: mig(c, f),
    sap_discrete=sap,
    sap_continuous=lambda *a: sap(*a, kind='r2'),
    modularity=lambda c, f, ct, ft: modularity(c, f),
    explicitness_train=lambda c, f, ct, ft: explicitness(c, f, c, f),
    explicitness_test=explicitness,
    irs=lambda c, f, ct, ft: irs(c, f),
)


@pytest.mark.parametrize('name', published)
@pytest.mark.parametrize('metric', score)
def test_equals_the_reference(name, metric):
    r = representation(name)
    got = score[metric](r.codes, r.factors, r.codes_test, r.factors_test)
    assert abs(got - published[name][metric]) < (1e-3 if metric.startswith(('sap_discrete', 'explicitness')) else 1e-9)


@pytest.mark.parametrize('name', published)
def test_numbers_are_those_of_the_file(name):
    assert all(abs(scores[name][k] - v) < 1e-9 for k, v in published[name].items())
    r = representation(name)
    assert np.allclose(mutual_information(r.codes, r.factors), r.mutual_information, atol=1e-9)
