"""What `bench/matcher.py` is made of: cases, rivals, and processes that can be killed."""
