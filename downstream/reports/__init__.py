"""What is made of finished evaluations: the page, tables beside those of papers, comparisons of runs, pictures."""
