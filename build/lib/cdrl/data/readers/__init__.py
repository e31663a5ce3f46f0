"""One module for each published data format, and the data sets that are made without any file."""
