"""Out-of-distribution detection by the energies."""
