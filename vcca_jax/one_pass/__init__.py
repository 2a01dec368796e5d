"""Batch, value and validation examples through one forward and one backward pass.

| module | what it does |
| --- | --- |
| ``shared_pass`` | the pass of a whole step, and what the caller asks of it |
| ``tape`` | every example's gradient, unformed, with the actions on it |
| ``sites`` | the places in a loss's own program where parameters meet an example |
| ``site_views`` | operations seen as products of matrices; users add their own |
| ``site_forms`` | which form a place is kept in, chosen from shapes |
| ``site_products`` | inner products and sums in each of these forms |
| ``placement`` | rows in one place, or in parts that stay where they are |
"""
