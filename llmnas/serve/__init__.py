"""Using a trained supernet: which sub-network answers, which one drafts."""
