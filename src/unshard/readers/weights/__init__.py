"""Files of weights as Hugging Face lays them out: safetensors, torch files, and the index of several."""
