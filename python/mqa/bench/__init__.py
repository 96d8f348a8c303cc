"""What `mqa bench` does: operators and their peers, timed in turn and compared with the machine.

Letters as in `mqa.ops`. But for the grid of Flash-Decoding all query heads share one KV head:
H_kv = 1 and G = H_q.
"""
