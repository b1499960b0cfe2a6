"""Operations that several models share: attention, resize, grid_sample."""
