"""GShard's mixture-of-experts layer (arXiv 2006.16668, section 2.2 and Algorithm 1).

One micro-batch passes these files in this order:

1. layer.py cuts the tokens into groups and calls what follows;
2. router.py maps each token to one logit an expert;
3. routing.py is Algorithm 1: experts, slots and weights of each token, and the balance loss;
4. dispatch.py copies tokens to the slots of their experts (product_form.py: the paper's einsum);
5. all_to_all.py exchanges slots between the processes of an expert parallel group;
6. experts.py computes the experts of this process (activation.py: GELU; on Hopper, with all
   experts on this process, ../packed computes the rows that are filled alone);
7. all_to_all.py and dispatch.py bring the results back, weighted.

Shape suffixes of all these files:

====  ==========================================================================
N     tokens of a micro-batch, N = G S after padding
G     groups of tokens
S     tokens of a group
K     choices of a token, 1 or 2
E     experts of all processes
C     capacity: slots of an expert in one group
R     rows of an expert, G C on one process
P     processes of the expert parallel group
D     experts of this process, E = P D
M     model width
H     hidden width of an expert
====  ==========================================================================
"""
