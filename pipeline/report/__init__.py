"""What a run was and found, for people: tables for a terminal, and one page with pictures.

``records`` reads the metrics of all attempts, ``pictures`` draws them and the evaluations,
``examples`` shows what the model recommends to a few users, ``page`` puts it together as HTML that
stands alone; ``tables`` are for a terminal.
"""
