"""Using a trained supernet: which sub-network answers, which one drafts."""

from llmnas.extras import require_modules

require_modules("torch", "transformers", use="llmnas.serve")
