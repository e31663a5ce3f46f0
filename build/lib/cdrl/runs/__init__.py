"""Run folders: what a run keeps on disk, its model folder, and weights in the authors' format."""
