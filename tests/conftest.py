"""Settings of the whole test session, made before torch or DeepSpeed are imported."""

import os

os.environ.update(
    OMP_NUM_THREADS="1", TQDM_DISABLE="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg"
)

import torch

torch.set_num_threads(1)
