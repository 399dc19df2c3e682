"""One file per stage; stages meet only through files in the run folder."""
