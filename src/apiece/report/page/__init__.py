"""The report page: a folder that opens from disk, written from what runs left behind."""
