"""What each op computes, in float64 by plain torch, written from the formula on its page."""
