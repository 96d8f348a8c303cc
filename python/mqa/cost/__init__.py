"""What a key-value cache costs and what fewer KV heads save: in work, in time and in memory."""
