"""Long work from start to end: preparing data, training both stages, importing weights, the quickstart."""
