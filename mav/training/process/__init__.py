"""What a training needs of its process: memory, signals, and an end when it stalls."""
