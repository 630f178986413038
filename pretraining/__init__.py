"""How the embedded base model `caesura-tiny` is made: corpus, tokenizer, training, test. See README.md."""
