"""What running code does, line by line: the forward pass and the training step, recorded for pages that show them."""
