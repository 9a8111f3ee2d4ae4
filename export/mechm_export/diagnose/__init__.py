"""`mechm export diagnose`: which layers are to blame where fp16, bf16 or int8 fails, and which to keep in fp32."""
