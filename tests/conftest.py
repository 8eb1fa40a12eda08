"What several test files share."
import pytest
import torch


@pytest.fixture(scope='module')
def one_thread():
    "Torch computes with one thread: threads that wait for each other are slow while other work runs on the machine"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
