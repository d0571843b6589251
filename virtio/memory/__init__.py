"""Guest memory: regions, address translation, the dirty log, files that are cut short."""
