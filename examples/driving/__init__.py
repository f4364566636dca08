"""Driving: what is on the road ahead, followed from frame to frame, with a risk flag; faces are blurred."""
