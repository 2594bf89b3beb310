"""What several methods share. Each module here may import torch and peft; the method files import them when applied."""
