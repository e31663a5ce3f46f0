"""Settings of the whole test session, made before torch or DeepSpeed are imported."""

import os

os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1", MPLBACKEND="Agg")
# On a machine with a GPU the tests marked gpu want to see it: CDRL_TEST_GPU=1 python -m pytest -n 0 -m gpu
if not os.environ.get("CDRL_TEST_GPU"):
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

import torch

torch.set_num_threads(1)
