"""Made-up input, bad and good: each is taken, or refused in one clear line (`make fuzz`)."""
