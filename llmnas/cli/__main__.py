"""`python -m llmnas.cli`, which is what the deepspeed launcher starts."""

from llmnas.cli import main

if __name__ == "__main__":
    main()
