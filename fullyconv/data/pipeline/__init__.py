"""From records to batches: transforms, reading ahead in processes, the cache."""
