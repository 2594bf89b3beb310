"""Functions that several methods use. These modules import torch and peft: import them only inside functions."""
