"""From shards to packed batches: which segment is trained when, and on which lane."""
