"""Who runs a case? Three systems: ours (needle), the peer (torch) and the truth (float64, from the definitions).

Ours and the peer train in lockstep from the same state, float32, driven as a user drives them; what they show is an
observation (`trace`). The truth takes all steps at once, in eight replicas, seven of which carry rounding noise. Another
needle takes the place of ours (`foreign`); `noise` puts rounding into any torch program.
"""
