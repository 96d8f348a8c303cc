"""What fewer KV heads cost in quality: small decoders of equal size, trained from scratch."""
