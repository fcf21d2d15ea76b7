"""Contenders that train side by side, each in a process and an environment of its own.

`beside` starts them and tells them when to train and when to evaluate; the other modules run in the
children, one a contender, and take nothing from this checkout but `turns` and `histories`.
"""
