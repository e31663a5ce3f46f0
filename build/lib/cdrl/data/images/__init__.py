"""Image sets in memory and as sources, picture files decoded, pictures brought to one size."""
