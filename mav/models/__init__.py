"""Networks: pseudo-3D layers, the pixel U-Net, the prior, and CLIP. torch and einops only at import."""
