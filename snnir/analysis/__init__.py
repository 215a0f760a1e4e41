"""What a network costs and how it behaves: counts, purity, energy, firing, pictures, the page."""
