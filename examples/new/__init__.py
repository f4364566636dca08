"""What `compass new` starts a bundle with; `settings.py` is written anew for each model."""
