/* Answers CPUID as a processor with AVX2 and without AVX-512, VNNI and AMX would.
 * With DYNAMIC_CPUID_MASK=avx512 as one with the AVX-512 of Skylake-X, which has no VNNI.
 *
 * limit.py replaces each CPUID instruction of a copy of a library by INT3 and NOP. The kernel then sends SIGTRAP, and
 * this handler runs CPUID itself, clears the feature bits and continues behind the two bytes. Everything else runs
 * natively, so times are real. SIGTRAP is used because Python's faulthandler takes SIGILL.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

/* leaf 7.0: AVX-512 F DQ IFMA PF ER CD BW VL | VBMI VBMI2 VNNI BITALG VPOPCNTDQ | 4VNNIW 4FMAPS VP2INTERSECT AMX FP16 */
static const unsigned EBX_7_0 = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned ECX_7_0 = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned EDX_7_0 = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
/* leaf 7.1: AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA | AVX-VNNI-INT8 NE-CONVERT AMX-COMPLEX VNNI-INT16 AVX10 */
static const unsigned EAX_7_1 = 1u << 4 | 1u << 5 | 1u << 21 | 1u << 23;
static const unsigned EDX_7_1 = 1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19;

/* what Skylake-X has of them: AVX-512 F DQ CD BW VL */
static const unsigned EBX_SKYLAKE = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;

static struct sigaction before;
static unsigned ebx_left; /* features of leaf 7.0 that stay */

static void answer(int number, siginfo_t *about, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];
    if (next[-1] != 0xcc || next[0] != 0x90) { /* a breakpoint of somebody else */
        sigaction(SIGTRAP, &before, NULL);
        raise(SIGTRAP);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) {
        b &= ~EBX_7_0 | ebx_left;
        c &= ~ECX_7_0;
        d &= ~EDX_7_0;
    }
    if (leaf == 7 && part == 1) {
        a &= ~EAX_7_1;
        d &= ~EDX_7_1;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 1;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    const char *mask = getenv("DYNAMIC_CPUID_MASK");
    if (mask != NULL && strcmp(mask, "avx512") == 0) ebx_left = EBX_SKYLAKE;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGTRAP, &action, &before);
}
