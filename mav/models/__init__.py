"""The networks: pseudo-3D layers, the pixel U-Net, the prior and CLIP. All but CLIP import torch and einops only."""
