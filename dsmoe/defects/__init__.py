"""Which of the defects that the patches fix live in another DeepSpeed, by proofs that run there."""
