"""The dumps of a run on disk: the form of an entry, and the folder that holds them. Free of torch."""
