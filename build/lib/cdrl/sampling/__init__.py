"""Drawing samples: Algorithm 2, its Markov kernels, per-image noise, annealed importance sampling."""
