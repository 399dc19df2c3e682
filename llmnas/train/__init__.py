"""Training the supernet and stand-alone networks, through DeepSpeed."""
