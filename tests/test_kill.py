"A run that is killed at random moments, and processes that share one; `benchmarks/kills.py` does more of it."
import kills

def test_killed_runs_end_as_if_nothing_had_happened():
    res = kills.kills(4, seed=1, longest=3.)
    assert res['kills']>=4 and res['equal_to_unkilled']==res['runs']>0, res

def test_two_processes_share_the_folds():
    res = kills.rounds(2)
    assert res['folds_trained_twice']==res['folds_lost']==0, res
