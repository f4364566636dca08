"""Gaming: from camera frames to the player's gesture and pose."""
