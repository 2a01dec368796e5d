"""Projections onto the cones that profiles allow, and their solvers.

Everything is for one agent unless it says otherwise; callers ``vmap``.

| module | what it does |
| --- | --- |
| ``projection`` | the nearest update in half-spaces, with derivatives |
| ``stacks`` | the same for materialised gradients of many agents |
| ``duals`` | the small program behind it, [K, K], for one agent or many |
| ``programs`` | its scaled units, and whether an answer is one |
| ``pivoting`` | the active-set method that solves it in a few moves |
| ``solvers`` | what all methods share, and the one that takes over where pivoting stops |
| ``violations`` | the least violation, where there is no admissible update |
| ``derivatives`` | the implicit derivative of an answer |
| ``conic`` | half-spaces with balls, angles and trust regions besides |
| ``conic_programs`` | its program and points, its scaled units, which prices are no answer |
| ``conic_newton`` | Newton's steps on its optimality conditions |
| ``conic_interior`` | the interior-point method, for what Newton's steps leave |
| ``second_order`` | the algebra of second-order cones that it needs |
"""
