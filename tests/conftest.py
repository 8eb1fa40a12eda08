"What several test files share."
import signal

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell lets what it starts in the background ignore Ctrl-C, and children inherit that


@pytest.fixture(scope='module')
def one_thread():
    "Torch computes with one thread: threads that wait for each other are slow while other work runs on the machine"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
