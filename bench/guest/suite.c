/* The benchmark that runs in the guest: as its init, or as a program on the host.
 *
 *     suite [-s SCALE] [-r REPEATS] [NAME...]        no names: all; -l lists them
 *
 * Each test prints "BEGIN name", then "RES name seconds rate unit/s check"; the host stamps these lines with the CPU time
 * that the virtual machine has spent. `check` depends on every result, so that a wrong processor shows. As init it
 * takes bench.scale=, bench.repeats= and bench.tests=a,b from the kernel's command line, and powers off at the end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct result {
    double work;
    const char *unit;
    uint64_t check;
};

#define RESULT(work, unit, check) ((struct result){(work), (unit), (uint64_t)(check)})
#define FAILED RESULT(0, "fail", 0)
#define MIB (1u << 20)

static double scale = 1.0;
static double measured; /* seconds, where a test times only a part of itself */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static long scaled(double count)
{
    double n = count * scale;
    return n < 1 ? 1 : (long)n;
}

static void *pages(size_t size, int protection)
{
    void *p = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return p;
}

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static uint32_t congruential(uint32_t *state) { return *state = *state * 1664525 + 1013904223; }

static uint64_t xorshift(uint64_t x)
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ x << 17;
}

/* ---- compute ---- */

static struct result intloop(void) /* one dependent chain of shifts and xors */
{
    long n = scaled(2e8);
    uint64_t x = 88172645463325252ull;
    for (long i = 0; i < n; i++)
        x = xorshift(x);
    return RESULT(n / 1e6, "Miter", x);
}

static struct result sieve(void) /* byte stores, hard-to-predict branches */
{
    long n = scaled(1.6e7), count = 0;
    uint8_t *prime = malloc(n + 1);
    memset(prime, 1, n + 1);
    for (long i = 2; i * i <= n; i++)
        if (prime[i])
            for (long j = i * i; j <= n; j += i)
                prime[j] = 0;
    for (long i = 2; i <= n; i++)
        count += prime[i];
    free(prime);
    return RESULT(n / 1e6, "Mnum", count);
}

static const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t hash[8], const uint8_t *data) /* FIPS 180-4, section 6.2.2 */
{
    uint32_t w[64], v[8];
    for (int t = 0; t < 16; t++) {
        uint32_t word;
        memcpy(&word, data + 4 * t, 4);
        w[t] = __builtin_bswap32(word);
    }
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    memcpy(v, hash, sizeof v);
    for (int t = 0; t < 64; t++) {
        uint32_t e = v[4], a = v[0];
        uint32_t big1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        uint32_t big0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        uint32_t t1 = v[7] + big1 + ((e & v[5]) ^ (~e & v[6])) + sha256_constants[t] + w[t];
        uint32_t t2 = big0 + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        v[7] = v[6], v[6] = v[5], v[5] = e, v[4] = v[3] + t1;
        v[3] = v[2], v[2] = v[1], v[1] = a, v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        hash[i] += v[i];
}

static struct result sha256(void)
{
    long blocks = scaled(64.0 * MIB / 64);
    uint32_t hash[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    static uint8_t data[4096];
    for (int i = 0; i < 4096; i++)
        data[i] = i * 7;
    for (long i = 0; i < blocks; i++)
        sha256_block(hash, data + (i & 63) * 64);
    return RESULT(blocks * 64 / 1e6, "MB", (uint64_t)hash[0] << 32 | hash[1]);
}

static int ascending(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static struct result sort(void) /* the C library's qsort: calls through a pointer */
{
    long n = scaled(1e6);
    int *values = malloc(n * sizeof *values);
    uint32_t random = 1;
    uint64_t check = 0;
    for (long i = 0; i < n; i++)
        values[i] = congruential(&random);
    qsort(values, n, sizeof *values, ascending);
    for (long i = 0; i < n; i += 997)
        check = check * 31 + (uint32_t)values[i];
    free(values);
    return RESULT(n / 1e6, "Mint", check);
}

static struct result matmul(void) /* packed and scalar double precision */
{
    enum { N = 256 };
    long repeats = scaled(3);
    double *a = malloc(N * N * 8), *b = malloc(N * N * 8), *c = calloc(N * N, 8), sum = 0;
    for (int i = 0; i < N * N; i++)
        a[i] = i % 7, b[i] = i % 5;
    for (long r = 0; r < repeats; r++)
        for (int i = 0; i < N; i++)
            for (int k = 0; k < N; k++) {
                double factor = a[i * N + k];
                for (int j = 0; j < N; j++)
                    c[i * N + j] += factor * b[k * N + j];
            }
    for (int i = 0; i < N * N; i++)
        sum += c[i];
    free(a), free(b), free(c);
    return RESULT(2.0 * N * N * N * repeats / 1e6, "MFLOP", bits_of(sum));
}

static struct result fdiv_(void) /* scalar square root and division, one waiting for the other */
{
    long n = scaled(2e7);
    double x = 1.5;
    for (long i = 0; i < n; i++) {
        x = __builtin_sqrt(x + 1.0) + 3.0 / x;
        if (x > 1e6)
            x = 1;
    }
    return RESULT(n / 1e6, "Miter", bits_of(x));
}

static struct result x87(void) /* long double */
{
    long n = scaled(2e7);
    volatile long double factor = 1.000001L;
    long double x = 1;
    for (long i = 0; i < n; i++) {
        x = x * factor + 1e-9L;
        if (x > 2)
            x -= 1;
    }
    return RESULT(n / 1e6, "Miter", x * 1e12L);
}

static struct result idiv_(void)
{
    long n = scaled(3e7);
    uint64_t s = 0;
    for (long i = 1; i <= n; i++) {
        s += 0xfffffffffffull / (uint64_t)i;
        s ^= s % (i + 7);
    }
    return RESULT(n / 1e6, "Miter", s);
}

/* "core": what CoreMark does, in small: a list sorted, a matrix multiplied, a text scanned, a CRC over it all. */

struct item {
    struct item *next;
    int16_t value, index;
};

static uint16_t crc16(uint16_t crc, uint16_t data)
{
    for (int i = 0; i < 16; i++, data >>= 1)
        crc = crc >> 1 ^ ((crc ^ data) & 1 ? 0xA001 : 0);
    return crc;
}

static struct item *merge_sort(struct item *head)
{
    if (!head || !head->next)
        return head;
    struct item *middle = head, *end = head->next, first, *last = &first;
    while (end && end->next)
        middle = middle->next, end = end->next->next;
    struct item *b = merge_sort(middle->next);
    middle->next = 0;
    struct item *a = merge_sort(head);
    while (a && b) {
        struct item **smaller = a->value <= b->value ? &a : &b;
        last = last->next = *smaller;
        *smaller = (*smaller)->next;
    }
    last->next = a ? a : b;
    return first.next;
}

static int is_digit(char c) { return c >= '0' && c <= '9'; }

static int scan_numbers(const char *s) /* a state machine over a list of numbers in several notations */
{
    enum { START, INTEGER, SIGN, FRACTION, EXPONENT, OTHER } state = START;
    int score = 0;
    for (; *s; s++)
        switch (state) {
        case START:
            state = is_digit(*s) ? INTEGER : *s == '+' || *s == '-' ? SIGN : *s == ',' ? START : OTHER;
            break;
        case INTEGER:
            if (*s == '.') state = FRACTION;
            else if (*s == 'e') state = EXPONENT;
            else if (*s == ',') state = START, score += 1;
            else if (!is_digit(*s)) state = OTHER;
            break;
        case SIGN:
            state = is_digit(*s) ? INTEGER : OTHER;
            break;
        case FRACTION:
            if (*s == ',') state = START, score += 2;
            else if (*s == 'e') state = EXPONENT;
            else if (!is_digit(*s)) state = OTHER;
            break;
        case EXPONENT:
            if (*s == ',') state = START, score += 3;
            break;
        default:
            if (*s == ',') state = START, score += 7;
        }
    return score;
}

static struct result core(void)
{
    enum { ITEMS = 128, N = 12 };
    long n = scaled(4000);
    uint16_t crc = 0;
    static struct item items[ITEMS];
    static int16_t a[N * N], b[N * N], c[N * N];
    const char *text = "5012,1234,-874,+122,35.54400,.1234500,-110.700,+0.64400,5.500e+3,-.123e-2,-87e+832,+0.6e-12,"
                       "T0.3e-1F,-T.T++Tq,1T3.4e4z,34.0e-T^,";
    for (long iteration = 0; iteration < n; iteration++) {
        uint32_t random = iteration * 2654435761u + 1;
        for (int i = 0; i < ITEMS; i++) {
            random = random * 1103515245 + 12345;
            items[i] = (struct item){i + 1 < ITEMS ? &items[i + 1] : 0, random >> 16, i};
        }
        for (struct item *item = merge_sort(items); item; item = item->next)
            crc = crc16(crc, item->value);
        for (int i = 0; i < N * N; i++)
            a[i] = (i + iteration) & 127, b[i] = (i * 3 + iteration) & 63;
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                int sum = 0;
                for (int k = 0; k < N; k++)
                    sum += a[i * N + k] * b[k * N + j];
                c[i * N + j] = sum >> 2;
            }
        for (int i = 0; i < N * N; i += N)
            crc = crc16(crc, c[i]);
        crc = crc16(crc, scan_numbers(text));
        crc = crc16(crc, scan_numbers(text + 3));
    }
    return RESULT(n / 1e3, "Kiter", crc);
}

static struct result interp(void) /* a bytecode interpreter: one indirect jump for each operation */
{
    static const uint8_t program[16] = {0, 1, 2, 3, 4, 1, 2, 0, 5, 3, 1, 4, 2, 0, 3, 6};
    static void *const labels[] = {&&add, &&xor_, &&mul, &&sub, &&rotate, &&accumulate, &&mix};
    long left = scaled(2e7), n = left;
    uint64_t a = 1, b = 2, c = 3;
    unsigned pc = 0;
#define NEXT do { if (--left <= 0) goto out; goto *labels[program[pc++ & 15]]; } while (0)
    NEXT;
add: a += b; NEXT;
xor_: b ^= c; NEXT;
mul: c = c * 3 + 1; NEXT;
sub: a -= c; NEXT;
rotate: b = b << 1 | b >> 63; NEXT;
accumulate: c += a; NEXT;
mix: a ^= b; NEXT;
out:
    return RESULT(n / 1e6, "Mop", a ^ b ^ c);
}

typedef uint64_t (*function)(uint64_t);
#define CALLEE(i) static __attribute__((noinline)) uint64_t callee##i(uint64_t x) { return x * (i * 2 + 3) + (x >> (i + 5)); }
CALLEE(0) CALLEE(1) CALLEE(2) CALLEE(3) CALLEE(4) CALLEE(5) CALLEE(6) CALLEE(7)

static struct result calls(void) /* through a table whose index is hard to predict */
{
    static const function table[8] = {callee0, callee1, callee2, callee3, callee4, callee5, callee6, callee7};
    long n = scaled(3e7);
    uint64_t x = 1;
    for (long i = 0; i < n; i++)
        x = table[x >> 9 & 7](x);
    return RESULT(n / 1e6, "Mcall", x);
}

static __attribute__((noinline)) int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static struct result fib(void)
{
    int n = scale >= 1 ? 32 : scale >= 0.1 ? 27 : 22;
    return RESULT(n == 32 ? 7.05 : n == 27 ? 0.636 : 0.0573, "Mcall", fibonacci(n));
}

/* ---- code that is new, or changes ---- */

static struct result coldcode(void) /* many straight-line functions, each called twice: the cost of first sight */
{
    enum { SIZE = 64, OPERATIONS = 8 };
    long n = scaled(20000);
    uint8_t *code = pages(n * SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
    uint32_t random = 7;
    uint64_t check = 0;
    for (long i = 0; i < n; i++) {
        uint8_t *p = code + i * SIZE;
        memcpy(p, "\x48\x89\xf8", 3), p += 3; /* mov rax, rdi */
        for (int k = 0; k < OPERATIONS; k++) {
            congruential(&random);
            int kind = random >> 28 & 3;
            *p++ = 0x48;
            if (kind == 2) { /* rol rax, imm8 */
                memcpy(p, "\xc1\xc0", 2), p[2] = random >> 8 & 31, p += 3;
            } else { /* add, xor or sub rax, imm32 */
                *p++ = kind == 0 ? 0x05 : kind == 1 ? 0x35 : 0x2d;
                memcpy(p, &random, 4), p += 4;
            }
        }
        memcpy(p, "\xa8\x01\x75\x03\x48\xff\xc0\xc3", 8); /* test al, 1; jnz over; inc rax; over: ret */
    }
    for (int repeat = 0; repeat < 2; repeat++)
        for (long i = 0; i < n; i++)
            check = ((function)(code + i * SIZE))(check + i);
    munmap(code, n * SIZE);
    return RESULT(n / 1e3, "Kfunc", check);
}

static struct result smc(void) /* a hot function whose immediate changes before every call */
{
    long n = scaled(20000);
    uint8_t *code = pages(4096, PROT_READ | PROT_WRITE | PROT_EXEC);
    uint64_t x = 1;
    memcpy(code, "\x48\x8d\x87\0\0\0\0\xc3", 8); /* lea rax, [rdi + imm32]; ret */
    for (long i = 0; i < n; i++) {
        *(volatile uint32_t *)(code + 3) = i & 0xffff;
        x = ((function)code)(x) * 3;
    }
    munmap(code, 4096);
    return RESULT(n / 1e3, "Kpatch", x);
}

/* ---- memory ---- */

static struct result copy(int by_string_instruction)
{
    size_t size = 8 * MIB;
    long n = scaled(64);
    char *to = malloc(size), *from = malloc(size);
    memset(to, 1, size);
    memset(from, 2, size);
    for (long i = 0; i < n; i++) {
        if (by_string_instruction) {
            void *d = to, *s = from;
            size_t count = size;
            __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(count)::"memory");
        } else
            memcpy(to, from, size);
        from[i]++;
    }
    uint64_t check = to[5];
    free(to), free(from);
    return RESULT(n * (double)size / 1e6, "MB", check);
}

static struct result memcpy_(void) { return copy(0); }
static struct result repmovs(void) { return copy(1); }

static struct result memwalk(void) /* loads and stores in order */
{
    size_t n = 4 * MIB;
    uint64_t *a = malloc(n * 8), sum = 0;
    long repeats = scaled(8);
    for (size_t i = 0; i < n; i++)
        a[i] = i;
    for (long r = 0; r < repeats; r++)
        for (size_t i = 0; i < n; i++)
            a[i] = sum += a[i];
    free(a);
    return RESULT(repeats * n * 8 / 1e6, "MB", sum);
}

static struct result chase(void) /* one pointer after the other over 64 MiB: misses in every TLB; only the walk is timed */
{
    struct node {
        struct node *next;
        char padding[56];
    };
    size_t n = 64 * MIB / sizeof(struct node);
    struct node *nodes = pages(n * sizeof *nodes, PROT_READ | PROT_WRITE);
    uint32_t *order = malloc(n * sizeof *order);
    uint64_t random = 9;
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n - 1; i > 0; i--) {
        random = xorshift(random);
        size_t j = random % i;
        uint32_t swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    for (size_t i = 0; i < n; i++)
        nodes[order[i]].next = &nodes[order[(i + 1) % n]];
    long hops = scaled(2e6);
    struct node *node = nodes;
    double start = now();
    for (long i = 0; i < hops; i++)
        node = node->next;
    measured = now() - start;
    uint64_t check = node - nodes;
    free(order);
    munmap(nodes, n * sizeof *nodes);
    return RESULT(hops / 1e6, "Mhop", check);
}

static struct result atomic(void) /* lock xadd */
{
    long n = scaled(3e7);
    static uint64_t value;
    value = 0;
    for (long i = 0; i < n; i++)
        __atomic_fetch_add(&value, i, __ATOMIC_SEQ_CST);
    return RESULT(n / 1e6, "Mop", value);
}

static struct result string(void) /* the C library's strlen, strchr, memcmp: SSE2 compares */
{
    size_t size = MIB;
    char *text = malloc(size);
    long n = scaled(200);
    uint64_t sum = 0;
    memset(text, 'a', size);
    text[size - 1] = 0;
    for (long i = 0; i < n; i++) {
        text[i] = 'b';
        sum += strlen(text);
        sum += strchr(text, 'z') != 0;
        sum += memcmp(text, text + 1, 1000) != 0;
    }
    free(text);
    return RESULT(n * 2.0 * size / 1e6, "MB", sum);
}

/* ---- the operating system ---- */

static struct result getppid_(void)
{
    long n = scaled(3e6);
    for (long i = 0; i < n; i++)
        syscall(SYS_getppid);
    return RESULT(n / 1e6, "Mcall", 0);
}

static struct result clock_(void) /* RDTSC in the vDSO, where the guest trusts its TSC */
{
    long n = scaled(1e6);
    struct timespec t;
    for (long i = 0; i < n; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    return RESULT(n / 1e6, "Mcall", 0);
}

static struct result pgfault(void)
{
    size_t size = 16 * MIB;
    long n = scaled(20);
    for (long r = 0; r < n; r++) {
        char *p = pages(size, PROT_READ | PROT_WRITE);
        madvise(p, size, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < size; i += 4096)
            p[i] = 1;
        munmap(p, size);
    }
    return RESULT(n * (size / 4096) / 1e3, "Kfault", 0);
}

static struct result mprotect_(void)
{
    long n = scaled(1e5);
    char *p = pages(4096, PROT_READ | PROT_WRITE);
    for (long i = 0; i < n; i++) {
        mprotect(p, 4096, PROT_READ);
        mprotect(p, 4096, PROT_READ | PROT_WRITE);
        *p = i;
    }
    munmap(p, 4096);
    return RESULT(2 * n / 1e3, "Kcall", 0);
}

static struct result pipepp(void) /* two processes on one CPU, a byte back and forth: context switches */
{
    long n = scaled(5e4);
    int there[2], back[2];
    cpu_set_t before, first;
    char byte = 0;
    if (pipe(there) || pipe(back))
        return FAILED;
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    pid_t child = fork();
    if (!child) {
        for (long i = 0; i < n; i++)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (long i = 0; i < n; i++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            break;
    waitpid(child, 0, 0);
    for (int i = 0; i < 2; i++)
        close(there[i]), close(back[i]);
    sched_setaffinity(0, sizeof before, &before);
    return RESULT(2 * n / 1e3, "Kswitch", 0);
}

static struct result fork_(void)
{
    long n = scaled(500);
    for (long i = 0; i < n; i++) {
        pid_t child = fork();
        if (!child)
            _exit(0);
        waitpid(child, 0, 0);
    }
    return RESULT(n, "fork", 0);
}

static struct result exec(void)
{
    long n = scaled(300);
    for (volatile long i = 0; i < n; i++) {
        pid_t child = vfork();
        if (!child) {
            execl("/proc/self/exe", "suite", "--exit", (char *)0);
            _exit(1);
        }
        waitpid(child, 0, 0);
    }
    return RESULT(n, "exec", 0);
}

static volatile long signals;
static void on_signal(int number) { (void)number, signals++; }

static struct result signal_(void)
{
    long n = scaled(1e5);
    signal(SIGUSR1, on_signal);
    for (long i = 0; i < n; i++)
        raise(SIGUSR1);
    return RESULT(n / 1e3, "Ksig", 0);
}

static struct result file(void) /* create, write, read, close; 100 names over and over */
{
    long n = scaled(3000);
    char name[64], buffer[4096];
    memset(buffer, 3, sizeof buffer);
    mkdir("/tmp", 0777);
    for (long i = 0; i < n; i++) {
        snprintf(name, sizeof name, "/tmp/bench-%ld", i % 100);
        int f = open(name, O_CREAT | O_RDWR | O_TRUNC, 0600);
        if (f < 0)
            return FAILED;
        for (int k = 0; k < 4; k++)
            if (write(f, buffer, sizeof buffer) != sizeof buffer)
                return FAILED;
        lseek(f, 0, SEEK_SET);
        while (read(f, buffer, sizeof buffer) > 0)
            ;
        close(f);
        if (i >= n - 100)
            unlink(name);
    }
    return RESULT(n / 1e3, "Kfile", 0);
}

static struct result tcp(void) /* over the loopback interface */
{
    static char buffer[65536];
    long n = scaled(64) * 16;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1) ||
        getsockname(listener, (void *)&address, &length))
        return FAILED;
    pid_t child = fork();
    if (!child) {
        int s = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(s, (void *)&address, sizeof address))
            _exit(1);
        for (long i = 0; i < n; i++)
            if (write(s, buffer, sizeof buffer) < 0)
                _exit(1);
        _exit(0);
    }
    int s = accept(listener, 0, 0);
    uint64_t total = 0;
    for (ssize_t k; (k = read(s, buffer, sizeof buffer)) > 0;)
        total += k;
    close(s), close(listener);
    waitpid(child, 0, 0);
    return RESULT(total / 1e6, "MB", total);
}

static struct result sleep_(void)
{
    long n = scaled(200);
    struct timespec t = {0, 1000000};
    for (long i = 0; i < n; i++)
        nanosleep(&t, 0);
    return RESULT(n, "x1ms", 0);
}

static const struct {
    const char *name;
    struct result (*run)(void);
} tests[] = {
    {"intloop", intloop},   {"core", core},         {"sieve", sieve},       {"sha256", sha256},   {"qsort", sort},
    {"matmul", matmul},     {"fdiv", fdiv_},        {"x87", x87},           {"idiv", idiv_},      {"interp", interp},
    {"calls", calls},       {"fib", fib},           {"coldcode", coldcode}, {"smc", smc},         {"memcpy", memcpy_},
    {"repmovs", repmovs},   {"memwalk", memwalk},   {"chase", chase},       {"atomic", atomic},   {"string", string},
    {"getppid", getppid_},  {"clock", clock_},      {"pgfault", pgfault},   {"mprotect", mprotect_},
    {"pipepp", pipepp},     {"fork", fork_},        {"exec", exec},         {"signal", signal_},  {"file", file},
    {"tcp", tcp},           {"sleep", sleep_},      {0, 0},
};

static int wanted(const char *name, char **names, int count)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(names[i], name))
            return 1;
    return count == 0;
}

static void run_tests(char **names, int count, int repeats)
{
    for (int k = 0; tests[k].name; k++) {
        if (!wanted(tests[k].name, names, count))
            continue;
        double best = 1e30;
        struct result result = {0};
        printf("BEGIN %s\n", tests[k].name);
        for (int i = 0; i < repeats; i++) {
            measured = 0;
            double start = now();
            result = tests[k].run();
            double seconds = measured > 0 ? measured : now() - start;
            if (seconds < best)
                best = seconds;
        }
        printf("RES %s %.6f %.6g %s/s %016llx\n", tests[k].name, best, result.work / (best > 1e-9 ? best : 1e-9),
               result.unit, (unsigned long long)result.check);
    }
}

/* ---- as init ---- */

static void first_line_of(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    if (!f || !fgets(text, size, f))
        text[0] = 0;
    if (f)
        fclose(f);
    text[strcspn(text, "\n")] = 0;
}

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    ioctl(s, SIOCSIFFLAGS, &request);
    close(s);
}

static int init(void)
{
    static char line[4096], clocksource[64], *names[64];
    int count = 0, repeats = 1;
    mkdir("/proc", 0755), mount("proc", "/proc", "proc", 0, 0);
    mkdir("/sys", 0755), mount("sysfs", "/sys", "sysfs", 0, 0);
    mkdir("/tmp", 0777), mount("tmpfs", "/tmp", "tmpfs", 0, 0);
    puts("INIT-OK");
    raise_loopback();
    first_line_of("/sys/devices/system/clocksource/clocksource0/current_clocksource", clocksource, sizeof clocksource);
    printf("CLOCKSOURCE %s\n", clocksource);
    first_line_of("/proc/cmdline", line, sizeof line);
    char *tests_wanted = 0;
    for (char *word = strtok(line, " "); word; word = strtok(0, " ")) {
        if (!strncmp(word, "bench.scale=", 12)) scale = atof(word + 12);
        if (!strncmp(word, "bench.repeats=", 14)) repeats = atoi(word + 14);
        if (!strncmp(word, "bench.tests=", 12)) tests_wanted = word + 12;
    }
    for (char *name = tests_wanted ? strtok(tests_wanted, ",") : 0; name && count < 64; name = strtok(0, ","))
        names[count++] = name;
    run_tests(names, count, repeats);
    puts("ALL-DONE");
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}

int main(int argc, char **argv)
{
    int repeats = 1, i;
    if (argc > 1 && !strcmp(argv[1], "--exit"))
        return 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (getpid() == 1)
        return init();
    for (i = 1; i < argc && argv[i][0] == '-'; i++) {
        if (!strcmp(argv[i], "-s") && i + 1 < argc) scale = atof(argv[++i]);
        else if (!strcmp(argv[i], "-r") && i + 1 < argc) repeats = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-l")) {
            for (int k = 0; tests[k].name; k++)
                puts(tests[k].name);
            return 0;
        } else
            return fprintf(stderr, "usage: suite [-s SCALE] [-r REPEATS] [NAME...]\n"), 2;
    }
    run_tests(argv + i, argc - i, repeats);
    puts("ALL-DONE");
    return 0;
}
