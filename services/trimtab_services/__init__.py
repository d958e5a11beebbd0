"""Services of Trimtab: generation, reward, reference, weights and labeling, over what `runtime` shares."""
